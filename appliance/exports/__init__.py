"""exports.conf: who may use which part of the appliance's tree, and how. The format is exports(5).

grammar.py   text -> lines of words
options.py   option lists -> Options (and which of them have no effect here)
clients.py   hosts, networks, wildcards: who an entry is for
table.py     ExportTable: which Export holds for this client, in constant time
load.py      parse, read, check, and the reload that never leaves a server without a table
problems.py  what is wrong, with file, line and hint
"""

from appliance.exports.clients import HostResolver, Resolver
from appliance.exports.load import ExportsFile, check, parse, read
from appliance.exports.options import AUTH_NONE, AUTH_SYS, Access, Options
from appliance.exports.problems import Problem, Severity, broken
from appliance.exports.table import Export, ExportTable

__all__ = [
    "AUTH_NONE",
    "AUTH_SYS",
    "Access",
    "Export",
    "ExportTable",
    "ExportsFile",
    "HostResolver",
    "Options",
    "Problem",
    "Resolver",
    "Severity",
    "broken",
    "check",
    "parse",
    "read",
]
