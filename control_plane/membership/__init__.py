"""Who is there: edges and cores, by leases in the store or by Consul, and how well they are."""
