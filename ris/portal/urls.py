"""Addresses of the portal."""

from django.urls import path

from ris.portal import views

app_name = "portal"
urlpatterns = [
    path("", views.orders, name="list"),
    path("<uuid:procedure_id>/", views.report, name="report"),
]
