"""What runs behind the platform: flush, expire, sample, provision, reconcile, rebuild."""
