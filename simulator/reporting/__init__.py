"""An estimate as one HTML file to send around: figures that zoom and answer to the pointer, tables, assumptions."""
