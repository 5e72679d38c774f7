"""What a fit returns, and what it can be asked: draws, summaries, checks, files."""
