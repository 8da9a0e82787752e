"""What each way of learning keeps and what it loses, on one harness."""
