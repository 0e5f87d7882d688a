"""How the desk (django-unfold) looks: titles, colours, and the sidebar, whose entries config/navigation.py names."""

from django.templatetags.static import static

# The colours of static/orderly/orderly.css: a deep teal over cool greys.
_PRIMARY = {
    "50": "oklch(97.6% .012 210)",
    "100": "oklch(94.4% .026 210)",
    "200": "oklch(88.6% .05 210)",
    "300": "oklch(80% .08 212)",
    "400": "oklch(70.5% .1 214)",
    "500": "oklch(61% .1 216)",
    "600": "oklch(50.5% .088 218)",
    "700": "oklch(43.5% .075 220)",
    "800": "oklch(36.5% .06 222)",
    "900": "oklch(30.5% .048 224)",
    "950": "oklch(22.5% .036 226)",
}

_BASE = {
    "50": "#f7f9fa",
    "100": "#eff2f4",
    "200": "#e1e6ea",
    "300": "#cbd3da",
    "400": "#92a3af",
    "500": "#5d6d79",
    "600": "#44535f",
    "700": "#384751",
    "800": "#26323b",
    "900": "#0f161b",
    "950": "#0a0f13",
}

UNFOLD = {
    "SITE_TITLE": "Orderly",
    "SITE_HEADER": "Orderly",
    "SITE_SUBHEADER": "Desk",
    "SITE_ICON": lambda request: static("orderly/mark.svg"),
    "SITE_URL": "/",
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("orderly/mark.svg")}
    ],
    "SHOW_HISTORY": False,
    "SHOW_VIEW_ON_SITE": False,
    "SHOW_BACK_BUTTON": False,
    "BORDER_RADIUS": "8px",
    "COLORS": {"base": _BASE, "primary": _PRIMARY},
    "STYLES": [lambda request: static("orderly/orderly.css")],
    "SCRIPTS": [lambda request: static("orderly/orderly.js")],
    "ACCOUNT": {"navigation": [{"title": "Change password", "link": "/password/"}]},
    "SIDEBAR": {
        "show_search": False,  # it would search by address; lists search without (common/searches.py)
        "show_all_applications": False,
        "navigation": "config.navigation.sidebar",
    },
}
