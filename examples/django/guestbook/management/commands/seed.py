from django.core.management.base import BaseCommand

from guestbook.models import Entry

AUTHORS = ["Akari", "Botan", "Chiyo", "Daichi", "Emi", "Fumio", "Ginjiro", "Hana"]
TEXTS = [
    "Passed through on the way north.",
    "The tea was good, the view better.",
    "Came back a year later: nothing has moved.",
    "Left early, before the rain.",
    "We shall tell our friends.",
]


class Command(BaseCommand):
    help = "Fills an empty guestbook up to a number of entries."

    def add_arguments(self, parser):
        parser.add_argument("--entries", type=int, default=1000)

    def handle(self, *, entries, **options):
        missing = range(Entry.objects.count(), entries)
        Entry.objects.bulk_create(
            Entry(author=AUTHORS[n % len(AUTHORS)], text=TEXTS[n % len(TEXTS)]) for n in missing
        )
