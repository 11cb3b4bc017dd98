class CreateEntries < ActiveRecord::Migration[6.1]
  def change
    create_table :entries do |table|
      table.string :author, null: false, limit: 80
      table.string :text, null: false, limit: 500
      table.datetime :created_at, null: false
      table.index :author
    end
  end
end
