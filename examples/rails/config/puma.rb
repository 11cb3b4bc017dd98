bind "tcp://0.0.0.0:#{ENV.fetch("PORT", "8000")}"
threads 5, 5
environment "production"
preload_app!
