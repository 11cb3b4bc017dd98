class Entry < ApplicationRecord
  validates :author, presence: true, length: { maximum: 80 }
  validates :text, presence: true, length: { maximum: 500 }

  scope :latest, -> { order(id: :desc).limit(10) }
end
