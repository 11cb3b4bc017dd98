# Fills an empty guestbook up to 1,000 entries.
AUTHORS = %w[Akari Botan Chiyo Daichi Emi Fumio Ginjiro Hana].freeze
TEXTS = [
  "Passed through on the way north.",
  "The tea was good, the view better.",
  "Came back a year later: nothing has moved.",
  "Left early, before the rain.",
  "We shall tell our friends.",
].freeze

missing = (Entry.count...1000).map do |n|
  { author: AUTHORS[n % AUTHORS.size], text: TEXTS[n % TEXTS.size], created_at: Time.current }
end
Entry.insert_all!(missing) if missing.any?
