"""Reports: numbers first (``tables``), then drawings (``charts``), one page that holds both (``page``), receipts."""
