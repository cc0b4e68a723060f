"""A look into the network: heat maps of chosen films, and what covered borders do to the scores of a sample.

In: the evaluated films (`tables.prediction_schema`, with labels). Out: `evaluation.explained.Explained`. The films are
fetched, decoded and scored again as screening does it. Pictures leave only where the archive holds no DICOM film, as
paths do; the check of the borders leaves numbers alone, so every archive may have it.
"""

import pyarrow as pa
import pyarrow.compute as pc

from pneumobatch import tables
from pneumobatch.config import Job
from pneumobatch.evaluation.explained import Explained
from pneumobatch.evaluation.published import Bundle, Record, holds_dicom

GONE = "none of the films is where it was screened, and as it was"
DICOM = "the archive holds DICOM films, and no picture leaves an archive of these"


def explain(job: Job, record: Record, bundle: Bundle, films: pa.Table) -> Explained:
    """Makes what evaluation.heat_maps and evaluation.masked_films ask for, or says why it cannot.

    Raises:
        ValueError: The bundle's weights are not those that its bundle.json was written for.
    """
    options, found = job.evaluation, Explained()
    known = films.filter((pc.field("status") == tables.Status.SCORED.value) & pc.field("label").is_valid())
    if missing := bundle.missing or (None if len(known) else "no label is known for any scored film"):
        wanted = [missing if number else None for number in (options.heat_maps, options.masked_films)]
        return Explained(without_pictures=wanted[0], without_masking=wanted[1])
    # Not above: who evaluates without looking does without the seconds that torch takes to import.
    from pneumobatch.models.heatmaps import NoFeatureMapError
    from pneumobatch.screening import masking, pictures
    from pneumobatch.screening.look import Look

    look = Look(job, record, bundle)
    if options.heat_maps and holds_dicom(record, films):
        found = found._replace(without_pictures=DICOM)
    elif options.heat_maps:
        shown = look.at(pictures.chosen(known, options.heat_maps))
        try:
            drawn = pictures.draw(look.network(), shown.films, shown.pixels) if len(shown.films) else []
            found = found._replace(pictures=drawn, without_pictures=None if drawn else GONE)
        except NoFeatureMapError as error:
            found = found._replace(without_pictures=str(error))
    if options.masked_films:
        sample = look.at(known.take(pa.array(masking.sample(known, options.masked_films, options.seed))))
        table = masking.measure(*sample, look.probabilities, options, record) if len(sample.films) else None
        found = found._replace(masking=table, without_masking=None if table else GONE)
    return found
