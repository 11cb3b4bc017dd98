from django.db import models


class Entry(models.Model):
    author = models.CharField(max_length=80)
    text = models.CharField(max_length=500)
    written = models.DateTimeField(auto_now_add=True, db_index=True)

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "entries"

    def __str__(self):
        return f"{self.author}: {self.text}"

    def as_json(self):
        return {"id": self.id, "author": self.author, "text": self.text, "written": self.written.isoformat()}
