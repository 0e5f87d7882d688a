"""The simple viewer: scrolls through the series of a study by rendered pictures; needs nothing installed."""
