"""Addresses of the reading room."""

from django.urls import path

from ris.reading import documents, views

app_name = "reading"
urlpatterns = [
    path("document/<uuid:pk>/", documents.document, name="document"),
    path("", views.reading_list, name="list"),
    path("<uuid:procedure_id>/", views.report, name="report"),
    path("<uuid:procedure_id>/save/", views.save, name="save"),
    path("<uuid:procedure_id>/sign/", views.sign, name="sign"),
    path("<uuid:procedure_id>/addend/", views.addend, name="addend"),
    path("<uuid:procedure_id>/retract/", views.retract, name="retract"),
]
