-- What is over grows without a bound, and a device that comes must not read through it.
CREATE INDEX members_present ON members (user_id, chat_id) WHERE left_seq = 0;
