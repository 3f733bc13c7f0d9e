"""A paper's tables: the file format (schema), the grid, the verdicts, the printed forms, the published record."""
