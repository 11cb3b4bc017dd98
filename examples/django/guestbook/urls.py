from django.urls import path

from . import views

urlpatterns = [
    path("", views.index, name="index"),
    path("api/entries", views.entries, name="entries"),
    path("healthz", views.healthz, name="healthz"),
]
