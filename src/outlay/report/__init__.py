"""Reports: numbers first, then tables, figures, one page that holds both, flat files and receipts."""
