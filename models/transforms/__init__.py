"""peakline."""
