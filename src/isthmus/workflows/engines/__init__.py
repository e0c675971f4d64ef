"""Where the shards of a job are computed: in this process, or by the workers of a Ray cluster."""
