"""The join: events of one trace, one lane's sessions, rules, and the Kafka worker around them."""
