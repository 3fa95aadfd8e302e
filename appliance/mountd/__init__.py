"""mountd: hands out the file handles with which everything else begins."""
