"""Measurements and the demonstration. Everything here talks to a running gateway from outside, over HTTP."""
