"""The recogniser as a service that clients of OpenAI's transcription API can talk to."""
