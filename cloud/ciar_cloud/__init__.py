"""The cloud process: serves the target model to many edges."""
