"""The resources of DICOMweb (PS3.18 10.4 to 10.6), below /dicomweb/."""

from django.urls import URLPattern, path, re_path, register_converter

from pacs.dicomweb import qido, rendered, stow, wado


class UidConverter:
    """A UID as devices send it: digits and dots, at most 64 characters."""

    regex = "[0-9.]{1,64}"

    def to_python(self, value: str) -> str:
        """As it is."""
        return value

    def to_url(self, value: str) -> str:
        """As it is."""
        return value


register_converter(UidConverter, "uid")

_STUDY = "studies/<uid:study>"
_SERIES = f"{_STUDY}/series/<uid:series>"
_INSTANCE = f"{_SERIES}/instances/<uid:instance>"
_UIDS = "/".join(
    (
        r"^studies/(?P<study>[0-9.]{1,64})/series/(?P<series>[0-9.]{1,64})",
        r"instances/(?P<instance>[0-9.]{1,64})",
    )
)

urlpatterns: list[URLPattern] = [
    path("studies", stow.Studies.as_view(), name="dicomweb-studies"),
    path("series", qido.SearchSeries.as_view(), name="dicomweb-series"),
    path("instances", qido.SearchInstances.as_view(), name="dicomweb-instances"),
    path(_STUDY, stow.OneStudy.as_view(), name="dicomweb-study"),
    path(f"{_STUDY}/series", qido.SearchSeries.as_view()),
    path(f"{_STUDY}/instances", qido.SearchInstances.as_view()),
    path(f"{_SERIES}/instances", qido.SearchInstances.as_view()),
    path(_SERIES, wado.Retrieve.as_view()),
    path(_INSTANCE, wado.Retrieve.as_view(), name="dicomweb-instance"),
    path(f"{_STUDY}/metadata", wado.Metadata.as_view()),
    path(f"{_SERIES}/metadata", wado.Metadata.as_view()),
    path(f"{_INSTANCE}/metadata", wado.Metadata.as_view()),
    path(f"{_STUDY}/thumbnail", rendered.Thumbnail.as_view(), name="dicomweb-study-thumbnail"),
    path(f"{_SERIES}/rendered", rendered.Rendered.as_view()),
    path(f"{_SERIES}/thumbnail", rendered.Thumbnail.as_view(), name="dicomweb-series-thumbnail"),
    path(f"{_INSTANCE}/rendered", rendered.Rendered.as_view(), name="dicomweb-rendered"),
    path(f"{_INSTANCE}/thumbnail", rendered.Thumbnail.as_view()),
    re_path(_UIDS + r"/frames/(?P<frames>[0-9]{1,9}(?:(?:,|%2[Cc])[0-9]{1,9})*)$", wado.Frames.as_view()),
    re_path(_UIDS + r"/frames/(?P<frames>[0-9]{1,9})/rendered$", rendered.Rendered.as_view()),
    re_path(_UIDS + r"/frames/(?P<frames>[0-9]{1,9})/thumbnail$", rendered.Thumbnail.as_view()),
    re_path(
        _UIDS + r"/bulkdata/(?P<path>[0-9A-Fa-f]{8}(?:/[0-9]{1,6}/[0-9A-Fa-f]{8}){0,64})$",
        wado.Bulkdata.as_view(),
    ),
]
