"""DAO-P: objective, prediction and relaxation."""
