"""Moves blocks between this process, Valkey and S3. The way in is `neve.datapath.client`."""
