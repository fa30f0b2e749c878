"""The page that shows splats in a browser: template, style, and the script bundled from main.js, orbit.js and PlayCanvas.

`make viewer` writes viewer.min.js anew, from the versions that package.json pins; `app.viewer_page` fills the template.
"""
