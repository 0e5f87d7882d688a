"""The addresses of the FHIR door, by version: `/fhir/r4/…`. Another version is another call of `served`."""

from django.urls import URLPattern, URLResolver, include, path, re_path

from integration.fhir.api.views import R4, Metadata, Read, Search, SearchByForm, Unknown, Version


def served(version: Version) -> list[URLPattern]:
    """The patterns of one version."""
    name = f"fhir-{version.name}"
    return [
        path("metadata", Metadata.as_view(version=version), name=f"{name}-metadata"),
        re_path(r"^(?P<kind>[A-Z][A-Za-z]+)$", Search.as_view(version=version), name=f"{name}-search"),
        re_path(
            r"^(?P<kind>[A-Z][A-Za-z]+)/_search$",
            SearchByForm.as_view(version=version),
            name=f"{name}-search-form",
        ),
        re_path(
            r"^(?P<kind>[A-Z][A-Za-z]+)/(?P<pk>[A-Za-z0-9\-.]{1,64})$",
            Read.as_view(version=version),
            name=f"{name}-read",
        ),
        re_path(r"^.*$", Unknown.as_view(version=version), name=f"{name}-unknown"),
    ]


urlpatterns: list[URLPattern | URLResolver] = [path("r4/", include(served(R4)))]
