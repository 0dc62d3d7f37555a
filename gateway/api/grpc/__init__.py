"""The gRPC port. Its libraries are an extra: nothing outside this package imports them, and it only when it is used."""
