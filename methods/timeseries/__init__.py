"""Time series: classification, forecasting, detection."""
