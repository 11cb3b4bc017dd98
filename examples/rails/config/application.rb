require_relative "boot"

require "rails"
require "active_model/railtie"
require "active_record/railtie"
require "action_controller/railtie"
require "action_view/railtie"

Bundler.require(*Rails.groups)

module Guestbook
  DATA_DIR = Pathname(ENV.fetch("DATA_DIR"))

  class Application < Rails::Application
    config.load_defaults 6.1
    config.secret_key_base = (DATA_DIR / "secret-key").read.strip
  end
end
