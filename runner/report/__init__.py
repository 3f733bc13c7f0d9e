"""One HTML page, and pictures, of the runs and tables in a folder: reads files only, imports no torch."""
