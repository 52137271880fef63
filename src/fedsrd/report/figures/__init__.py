"""Figures: described once (`figure`), drawn by matplotlib (`static`) and by plotly.js (`interactive`)."""
