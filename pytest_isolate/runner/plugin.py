"""What pytest loads through the entry point `isolate`: nothing yet."""
