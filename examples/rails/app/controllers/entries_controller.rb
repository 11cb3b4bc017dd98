class EntriesController < ApplicationController
  def index
    @entry = Entry.new
    show
  end

  def create
    @entry = Entry.new(params.require(:entry).permit(:author, :text))
    return redirect_to root_path if @entry.save

    show status: :bad_request
  end

  def healthz
    Entry.connection.select_value("SELECT 1")
    render plain: "ok\n"
  end

  private

  def show(status: :ok)
    @entries = Entry.latest
    @count = Entry.count
    @authors = Entry.group(:author).order(Arel.sql("COUNT(*) DESC"), :author).limit(5).count
    render :index, status: status
  end
end
