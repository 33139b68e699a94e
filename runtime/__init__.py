"""What every Tradewind process needs, and nothing that knows about regions or edges."""
