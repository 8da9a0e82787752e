"""The gate measured by simulation: error rates, items asked, peers."""
