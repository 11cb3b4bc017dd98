class ApplicationController < ActionController::Base
  EPOCH = Pathname("/run/hakobu/epoch")

  before_action :tell_who_serves

  private

  # Read for each request: all of it changes when the process is restored on another host.
  def tell_who_serves
    epoch = EPOCH.exist? ? EPOCH.read.strip : "none"
    @served_by = "host=#{Socket.gethostname}; pid=#{Process.pid}; epoch=#{epoch}"
    response.headers["X-Served-By"] = @served_by
  end
end
