"""The accuracy study: its runs, what lies on disk, intervals, tables."""
