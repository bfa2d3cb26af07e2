"""What leaves Kafka: the load worker, the ClickHouse tables and the questions asked of them."""
