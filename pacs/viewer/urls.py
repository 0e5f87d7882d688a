"""The viewer's addresses, below /viewer/."""

from django.urls import path

from pacs.viewer import views

urlpatterns = [
    path("", views.viewer, name="viewer"),
    path("studies/<uuid:study>", views.contents, name="viewer-contents"),
]
