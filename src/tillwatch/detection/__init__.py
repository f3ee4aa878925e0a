"""A model and footage to incidents."""
