"""What an intervention achieved: intervals, recovery, measurements, plots and the report."""
