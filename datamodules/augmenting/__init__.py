"""Examples become training crops, or labelled patches."""
