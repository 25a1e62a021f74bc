"""The HTML report: what it reads (:mod:`.inputs`), its sections and charts, the page."""
