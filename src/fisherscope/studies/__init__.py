"""Experiments that run models: what is predicted stands beside what is measured."""
