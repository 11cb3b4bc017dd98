import json

from django.db import connection
from django.db.models import Count
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_http_methods

from .forms import EntryForm
from .models import Entry
from .served_by import served_by

LATEST = 10


@require_http_methods(["GET", "HEAD", "POST"])
def index(request):
    form = EntryForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        form.save()
        return redirect("index")
    context = {
        "form": form,
        "entries": Entry.objects.all()[:LATEST],
        "count": Entry.objects.count(),
        "authors": Entry.objects.values("author").annotate(entries=Count("id")).order_by("-entries", "author")[:5],
        "served_by": served_by(),
    }
    return render(request, "guestbook/index.html", context, status=400 if form.errors else 200)


@csrf_exempt
@require_http_methods(["GET", "HEAD", "POST"])
def entries(request):
    """For programs: GET gives the latest entries, POST {"author", "text"} adds one."""
    if request.method != "POST":
        latest = [entry.as_json() for entry in Entry.objects.all()[:LATEST]]
        return JsonResponse({"count": Entry.objects.count(), "entries": latest})
    try:
        fields = json.loads(request.body)
    except ValueError as error:
        return JsonResponse({"error": f"not JSON: {error}"}, status=400)
    if not isinstance(fields, dict):
        return JsonResponse({"error": "give an object with author and text"}, status=400)
    form = EntryForm(fields)
    if not form.is_valid():
        return JsonResponse({"error": form.errors}, status=400)
    return JsonResponse({**form.save().as_json(), "count": Entry.objects.count()}, status=201)


@require_GET
def healthz(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse("ok\n", content_type="text/plain")
