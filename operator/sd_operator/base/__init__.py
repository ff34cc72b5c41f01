"""What every wing may use: settings, errors, logs, metrics, times and texts for people."""
